package org.pocketphi.bench

import android.app.Activity
import android.view.ViewGroup
import android.widget.ImageView
import android.widget.TextView
import org.pocketphi.core.Part

/** Pictures and sounds as small cards of [into]; with [onRemove] each has a button for that. */
class AttachmentViews(private val screen: Activity, private val into: ViewGroup, private val onRemove: ((Part) -> Unit)? = null) {
    fun show(parts: List<Part>) {
        into.removeAllViews()
        parts.forEach { add(it, last = it === parts.last()) }
    }

    private fun add(part: Part, last: Boolean) {
        val card = screen.layoutInflater.inflate(R.layout.attachment, into, false)
        val image = card.findViewById<ImageView>(R.id.attachment)
        val text = card.findViewById<TextView>(R.id.attachment_text)
        when (part) {
            is Part.Picture -> {
                image.setImageBitmap(screen.app.media.thumbnail(part))
                image.contentDescription = screen.getString(R.string.attached_picture, part.width, part.height)
                text.visible(false)
            }
            is Part.Sound -> {
                image.setImageResource(R.drawable.ic_sound)
                image.scaleType = ImageView.ScaleType.CENTER
                image.layoutParams.width = screen.resources.getDimensionPixelSize(android.R.dimen.app_icon_size)
                text.text = Format.time(part.seconds)
                image.contentDescription = screen.getString(R.string.attached_sound, Format.time(part.seconds))
            }
            is Part.Words -> return
        }
        card.findViewById<android.view.View>(R.id.attachment_remove).apply {
            visible(onRemove != null)
            setOnClickListener { onRemove?.invoke(part) }
        }
        if (last) (card.layoutParams as ViewGroup.MarginLayoutParams).marginEnd = 0
        into.addView(card)
    }
}
